"""Placement: from profiles to a ring plan.

    problem.py     profiles -> numbers              cost.py        the formulas: what a plan costs
    steady.py      plans outside the formulas       layout.py      counts -> windows and what streams
    ring_order.py  which rings, at what hop cost    bounds.py      how good a ring can be at best
    screen.py      good plans fast                  halda.py       the MILP of one ring
    search.py      all of these in turn             polish.py      layers that differ
    pins.py        around windows set by hand       explain.py     reasons, and what is missing
    plan.py        solve, plan_from_edit            exhaustive.py  the oracle of the tests

The formulation is in `docs/solver.md`.
"""
