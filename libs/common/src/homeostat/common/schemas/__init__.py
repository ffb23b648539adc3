"""The payloads of the topics, one module a topic family. JSON unless a module says Arrow."""
