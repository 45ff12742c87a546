"""Reference implementations that the library is compared with; not part of the installed package."""
