"""Scripts for the environments of other runtimes: started by path, never imported (`checking.py`)."""
