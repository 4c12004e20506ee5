"""What every test folder shares."""

from hypothesis import HealthCheck, settings

# A busy machine is slow now and then: how long an example takes says nothing about what it shows.
settings.register_profile("loratree", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loratree")
