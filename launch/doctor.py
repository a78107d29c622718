"""Checks what an experiment needs of this machine, of the cluster and of the services."""

from offscript.cli import main
from offscript.doctor import doctor

if __name__ == "__main__":
    main("doctor", doctor)
