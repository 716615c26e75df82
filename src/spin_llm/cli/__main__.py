"""`python -m spin_llm.cli`, as torchrun starts it."""

from spin_llm.cli.main import main

main()
