"""`python -m cdl_deploy` is `cdl`: what `accelerate launch -m cdl_deploy train …` and `torchrun -m` start."""

from cdl_deploy.cli import main

if __name__ == "__main__":  # processes that load images import this file too
    main()
