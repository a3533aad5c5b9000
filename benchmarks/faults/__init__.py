"""What a server is put through, and what it does: overload, adapters that come and go, requests made up."""
