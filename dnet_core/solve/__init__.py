"""Placement: from profiles to a ring plan.

    problem.py     profiles -> numbers            cost.py        the only formulas: what a plan costs
    ring_order.py  which rings, at what hop cost  halda.py       the MILP of one number of rounds
    plan.py        solve, plan_from_edit          exhaustive.py  the oracle of the tests

The formulation is in `docs/solver.md`.
"""
