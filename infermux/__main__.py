"""python -m infermux"""

from .cli import main

main(prog_name="infermux")
