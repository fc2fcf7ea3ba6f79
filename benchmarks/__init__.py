"""How much the gateway costs, measured beside a relay that checks nothing, in one run on one machine. `make bench`."""
