"""The services' pure steps, wired in one process over in-memory topics under a virtual clock."""
