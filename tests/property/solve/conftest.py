"""The same examples in every run: a red test is red for everybody."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "solve", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("solve")
