//! The command line: one file per verb.

/// Runs the verb that the arguments name; its exit code is 0 done, 1 the answer is no, 2 usage or configuration fault, 3 no agent.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(2)
}
