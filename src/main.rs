//! Entry point of `gravitonfs`.

fn main() -> std::process::ExitCode {
    gravitonfs::cli::main()
}
