"""The four servers under the services, each made of the real thing."""
