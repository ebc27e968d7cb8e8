//! Delays the frames of lines between two devices of the namespace it is started in.

fn main() -> anyhow::Result<()> {
    tests::network::delay::main()
}
