//! The deterministic, seeded token sampler of OpenGrid (pure)
