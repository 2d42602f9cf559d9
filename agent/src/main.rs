//! The `tollgate` binary: arguments → exit code.

fn main() -> std::process::ExitCode {
    tollgate::cli::main()
}
