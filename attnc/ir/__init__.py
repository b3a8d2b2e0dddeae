"""The typed IR: expressions (`nodes`), files (`program`), types, and ways to go over them. No third-party import."""
