"""What runs at clients."""
