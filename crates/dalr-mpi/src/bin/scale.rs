//! Measures 1, 2 and 4 ranks on this machine and prints tables in Markdown: the measurements, the
//! estimates for the same jobs, and the estimates for many machines.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use dalr_mpi::estimate::{Cluster, Rates, Solve, calibration, reduction, scatter_bytes, solve, vectors_of};
use dalr_mpi::measure::{Measured, Sizes};

/// Measures 1, 2 and 4 ranks on this machine over the loopback interface, and estimates the time on
/// many machines.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    sizes: Sizes,
    /// The command that starts the ranks, with its options.
    #[arg(long, default_value = "mpirun --oversubscribe --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include lo")]
    mpirun: String,
    /// Cores of each machine in the estimates, as fast as those here.
    #[arg(long, default_value_t = 32.0)]
    cores: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let measured: Result<Vec<_>, String> = [1, 2, 4].into_iter().map(|ranks| run(&arguments, ranks)).collect();
    match measured {
        Ok(measured) => {
            print_measured(&measured);
            print_checked(&measured);
            print_estimates(&measured, arguments.cores);
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, ranks: usize) -> Result<Measured, String> {
    let Sizes { features, samples, merged_features, solve_samples, rank } = arguments.sizes;
    let program: PathBuf = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("dalr-mpi");
    let mut words = arguments.mpirun.split_whitespace();
    let starter = words.next().ok_or("expected a command in --mpirun, got none")?;
    let output = Command::new(starter)
        .args(words)
        .args(["-n", &ranks.to_string()])
        .arg(&program)
        .args(["measure", "--features", &features.to_string(), "--samples", &samples.to_string()])
        .args(["--merged-features", &merged_features.to_string(), "--solve-samples", &solve_samples.to_string()])
        .args(["--rank", &rank.to_string()])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .output()
        .map_err(|error| format!("{starter}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with('{'));
    line.and_then(|line| serde_json::from_str(line).ok())
        .ok_or_else(|| format!("{ranks} ranks: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Returns the smallest and the largest number of bytes, in megabytes.
fn megabytes(bytes: &[u64]) -> String {
    let (least, most) = (bytes.iter().min().copied().unwrap_or(0), bytes.iter().max().copied().unwrap_or(0));
    let shown = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    if shown(least) == shown(most) { shown(most) } else { format!("{}–{}", shown(least), shown(most)) }
}

fn print_measured(measured: &[Measured]) {
    println!(
        "| ranks | calibration | samples/s | reduction | sent by a rank | on the wire | memory of a rank | in scatters |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for m in measured {
        let most = m.reduce_memory.iter().max().copied().unwrap_or(0) as f64;
        println!(
            "| {} | {:.2} s | {:.0} | {:.3} s | {} MB | {:.0} MB | {} MB | {:.2} |",
            m.ranks,
            m.calibrate_seconds,
            m.sizes.samples as f64 / m.calibrate_seconds,
            m.reduce_seconds,
            megabytes(&m.reduce_sent),
            m.reduce_wire as f64 / 1e6,
            megabytes(&m.reduce_memory),
            most / scatter_bytes(m.sizes.merged_features as f64)
        );
    }
    println!(
        "\n| ranks | solve | outputs | products | sums | steps | summed by a rank | on the wire | peak memory of a rank | relative error |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for m in measured {
        println!(
            "| {} | {:.2} s | {:.2} s | {:.2} s | {:.2} s | {} | {} MB | {:.0} MB | {} MB | {:.9} |",
            m.ranks,
            m.solve_seconds,
            m.outputs_seconds,
            m.product_seconds,
            m.sum_seconds,
            m.steps,
            megabytes(&m.solve_summed),
            m.solve_wire as f64 / 1e6,
            megabytes(&m.peak_memory),
            m.relative_error
        );
    }
}

/// Prints the estimates for the measured jobs. Their ranks share the cores of one machine, and its
/// memory is their network.
fn print_checked(measured: &[Measured]) {
    let [one, two, ..] = measured else { return };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let rates = Rates::of(one, two);
    println!(
        "\nOne core: calibration {:.2e}, products {:.2e} and the repeated part {:.2e} multiply–adds/s; merging {:.2e} bytes/s\n",
        rates.calibration, rates.products, rates.repeated, rates.merging
    );
    println!("| ranks | calibration, measured / estimated | reduction | solve without its outputs |");
    println!("|---|---|---|---|");
    for m in measured {
        let crowding = (m.ranks as f64 / cores as f64).max(1.0);
        // The merging rate was measured over the loopback and includes the network.
        let cluster = Cluster { ranks: m.ranks, cores: 1.0, crowding, bandwidth: f64::INFINITY, latency: 2e-5 };
        let problem = problem_of(m);
        let calibrated = calibration(&rates, &cluster, m.sizes.features as f64, m.sizes.samples as f64);
        let reduced = reduction(&rates, &cluster, m.statistics_bytes as f64);
        let loopback = Cluster { bandwidth: rates.merging, ..cluster };
        let solved = solve(&rates, &loopback, &problem).total();
        let against = |measured: f64, estimated: f64| {
            let ratio = if estimated > 0.0 { format!("{:.2}", measured / estimated) } else { "–".into() };
            format!("{measured:.3} / {estimated:.3} s = {ratio}")
        };
        println!(
            "| {} | {} | {} | {} |",
            m.ranks,
            against(m.calibrate_seconds, calibrated),
            against(m.reduce_seconds, reduced),
            against(m.solve_seconds - m.outputs_seconds, solved)
        );
    }
}

fn problem_of(m: &Measured) -> Solve {
    Solve {
        dimension: m.sizes.features as f64,
        samples: m.sizes.solve_samples as f64,
        steps: m.steps as f64,
        vectors: vectors_of(m),
    }
}

/// Prints the estimates for a layer of 12 288 × 12 288: statistics of 10⁹ tokens, and a solve to
/// rank 1024 over 10⁶ samples that stay on their machines.
fn print_estimates(measured: &[Measured], cores: f64) {
    let [one, two, ..] = measured else { return };
    let rates = Rates::of(one, two);
    let (features, tokens, kept, rank) = (12_288.0, 1e9, 1e6, 1024.0);
    let vectors = 3.0 * rank + 2.0 * 64.0 + 48.0;
    let problem = Solve { dimension: features, samples: kept, steps: vectors / 64.0, vectors };
    println!(
        "\n| machines | Gbit/s | tokens/s | 10⁹ tokens | reduction | solve | products | sums | repeated | efficiency of the solve |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for gigabits in [10.0, 25.0, 100.0] {
        let cluster = |ranks| Cluster { ranks, cores, crowding: 1.0, bandwidth: gigabits * 1.25e8, latency: 2e-5 };
        let alone = solve(&rates, &cluster(1), &problem).total();
        for ranks in [8, 16, 32, 64, 128, 256, 512] {
            let seconds = calibration(&rates, &cluster(ranks), features, tokens);
            let time = solve(&rates, &cluster(ranks), &problem);
            println!(
                "| {ranks} | {gigabits:.0} | {:.2e} | {:.0} s | {:.1} s | {:.1} s | {:.1} s | {:.1} s | {:.1} s | {:.0} % |",
                tokens / seconds,
                seconds,
                reduction(&rates, &cluster(ranks), scatter_bytes(features)),
                time.total(),
                time.products,
                time.sums,
                time.repeated,
                100.0 * alone / time.total() / ranks as f64
            );
        }
    }
}
