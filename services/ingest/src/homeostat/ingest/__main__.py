"""``python -m homeostat.ingest``."""

from homeostat.ingest.main import main

main()
