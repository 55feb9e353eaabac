//! What exit codes mean, for all commands.

/// It was done, and what was looked at is not well. Wrong arguments have 2, which is the parser's.
pub const FOUND: u8 = 3;

/// For the end of `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0   done, or ended as it was told; what was looked at is well
  1   an error that may be gone at the next try
  2   wrong arguments
  3   done, and a swarm is not Ready or something needs mending
  78  an error that stays until somebody changes something, such as a missing right; the last line says what

Results are on standard output, for a program with --output json. Progress and colours are for terminals; NO_COLOR is honoured.";
