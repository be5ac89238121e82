"""What is computed: arrays in, arrays out, with numpy, scipy, numba and pynndescent.

A kernel knows neither runs nor configurations, opens no file, tells no time and draws no random number but by a hash of
what it is given, so that equal arguments give equal bytes. Each has a module of tests of its name.
"""
