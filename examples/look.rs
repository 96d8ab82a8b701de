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
    for x in &d.declined {
        println!("declined {x:?}");
    }
}
