//! The `promotion-controller` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    promotion_controller::cli::main()
}
