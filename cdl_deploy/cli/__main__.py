"""`python -m cdl_deploy.cli` is `cdl`."""

from cdl_deploy.cli import main

main()
