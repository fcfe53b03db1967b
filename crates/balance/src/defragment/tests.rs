//! Plans on small clusters.
