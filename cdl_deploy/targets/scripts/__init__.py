"""Scripts for the environments of other runtimes: started by path, with numpy and nothing of this package."""
