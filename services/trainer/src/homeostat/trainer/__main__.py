"""``python -m homeostat.trainer``."""

from homeostat.trainer.main import main

main()
