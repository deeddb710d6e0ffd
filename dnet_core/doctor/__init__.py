"""`dnet-tui doctor`, `dnet-shard doctor`, `dnet-api doctor`: what usually goes wrong, and what to do.

    finding.py   one thing that was found      host.py   this machine      network.py   its neighbours
    main.py      all checks at once, each with a deadline; what is printed

Nothing here imports MLX: that is looked at in a child process.
"""
