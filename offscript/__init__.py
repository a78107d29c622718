"""offscript: does a trained character survive off script?"""
