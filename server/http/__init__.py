"""HTTP: routes, authentication, limits on bodies and connections. Stands on `prediction`."""
