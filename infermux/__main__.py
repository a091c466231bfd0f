"""python -m infermux"""

from .cli.main import main

main(prog_name="infermux")
