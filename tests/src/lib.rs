//! Tests harness.
