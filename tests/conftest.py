"""Eight simulated devices for all tests, before anything asks JAX for its devices."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
