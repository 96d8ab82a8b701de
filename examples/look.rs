use onnx_kprune::*;
use std::path::Path;
fn main() {
    let p = std::env::args().nth(1).unwrap();
    let path = Path::new(&p);
    let t = std::time::Instant::now();
    let model = files::read_model(path).unwrap();
    eprintln!("read {:?}", t.elapsed());
    let rt = runtime::Runtime::load(None, runtime::Choice::Cpu, 0).unwrap();
    eprintln!("{:?}", rt.library());
    let src = calibration::Sources::default();
    let cal = calibration::Calibration::gather(&model, path, &src).unwrap_or_else(|e| panic!("{e}"));
    let t = std::time::Instant::now();
    let seen = observation::observe(&rt, &model, &cal).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("observe {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let d = kprune_passes::discover::discover(&model.graph, &seen, &cal.lengths(None));
    eprintln!("discover {:?}", t.elapsed());
    for s in &d.sublayers {
        println!(
            "{:?} {} units={} width={} flops/unit={} params/unit={}",
            s.kind,
            s.name,
            s.units.len(),
            s.projection.width,
            s.units[0].flops,
            s.units[0].parameters
        );
    }
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut plan = kprune_passes::plan::Plan::untouched(&d);
    for (i, dec) in plan.decisions.iter_mut().enumerate() {
        for k in dec.keep.iter_mut() {
            *k = i != 4 && rng.random_range(0..10) < 5;
        }
    }
    let t = std::time::Instant::now();
    let pruned = kprune_passes::remove::remove(&model, &d, &seen, &plan).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("remove {:?}", t.elapsed());
    let masked = verify::masked_original(&model, &d, &plan).unwrap();
    let out = Path::new("/tmp/out.onnx");
    let staged = files::stage(&pruned, path, out).unwrap();
    let again = staged.reread().unwrap();
    let batches = cal.batches(8).unwrap();
    println!(
        "verify {:?}",
        verify::verify(&rt, &again, staged.path(), &masked, &d, &batches).map_err(|e| e.to_string())
    );
    staged.publish().unwrap();
    for x in &d.declined {
        println!("declined {x:?}");
    }
}
