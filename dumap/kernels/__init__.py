"""The computations: functions that take arrays and return arrays.

Kernels use numpy, scipy, numba with its llvmlite, threadpoolctl and pynndescent. A kernel knows neither runs nor
configurations, opens no file and reads no clock. Its random numbers are hashes of its arguments; pynndescent's own
generator is seeded by such a hash. So equal arguments give equal bytes. The tests of each kernel are a module of the
same name in tests/kernels.
"""
