"""How long the work takes, beside other tools that do the same: `make bench`, or `python -m bench --help`.

One run measures all of them on the same lab hosts, one after another, since only ratios within a run say
something on a machine that others use too (docs/adr/0004-speed.md has the figures so far).
"""
