"""offscript: does a trained character survive off script?"""

__version__ = "0.2.0"
