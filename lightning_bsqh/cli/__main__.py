"""``python -m lightning_bsqh.cli`` is the command ``lightning-bsqh``."""

from lightning_bsqh.cli.main import main

if __name__ == "__main__":
    main()
