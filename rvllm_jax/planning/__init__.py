"""What a configuration needs of a machine, by formula and by the compiler, without the machine."""
