"""Programs that other projects' clients run in their own environment are no modules of these tests."""

collect_ignore_glob = ["examples/*"]
