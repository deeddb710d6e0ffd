"""A simulated cluster behind the coordinator's interface, for trying the interface without Macs.

    cluster.py     the coordinator's interface           worlds.py   where its plans and times come from
    simulator.py   a ring as events on a clock           rings.py    plans as the simulator wants them
    macs.py        Macs, cables and their figures        models.py   models and their shapes
    loaded.py      a ring, and what follows it           answers.py  what it says

No model runs and nothing is sent: plans are the real solver's, times are the simulator's, texts are
written down.
"""
