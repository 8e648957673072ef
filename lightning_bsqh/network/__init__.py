"""What a network consists of, and what a sweep through it must put back."""
