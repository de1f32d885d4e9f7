"""The meter, pure: readings and spans in, shares and entries out. No clock, no log, no thread, no I/O."""
