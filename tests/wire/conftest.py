collect_ignore = ["feast_client.py"]  # imports what is installed in an environment of its own
