//! Data from a folder of images, made into numbers as a `preprocessor_config.json` says.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::imageops::crop_imm;
use image::{ImageReader, Rgb, RgbImage};
use kprune_passes::ir::{ElementType, Tensor};
use kprune_passes::signature::{Axis, Input};
use ndarray::Array4;
use serde::Deserialize;

use super::config::Config;
use super::fence::fenced;
use super::labels::{Labels, converted};
use super::samples::{Part, Samples};
use crate::error::Error;
use crate::store;

/// What the processors of Hugging Face write down, with their defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Preprocessor {
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<u8>,
    do_center_crop: Option<bool>,
    crop_size: Option<Size>,
    do_rescale: Option<bool>,
    rescale_factor: f32,
    do_normalize: Option<bool>,
    image_mean: Vec<f32>,
    image_std: Vec<f32>,
}

impl Default for Preprocessor {
    fn default() -> Self {
        Self {
            do_resize: None,
            size: None,
            resample: None,
            do_center_crop: None,
            crop_size: None,
            do_rescale: None,
            rescale_factor: 1.0 / 255.0,
            do_normalize: None,
            image_mean: vec![0.5; 3],
            image_std: vec![0.5; 3],
        }
    }
}

/// A size, as old and new processors write it, in pixels.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Box { height: u32, width: u32 },
    Shortest { shortest_edge: u32 },
    Number(u32),
}

/// The images below a folder; where they lie in folders of their own, those are their classes.
pub(super) struct Images {
    folder: PathBuf,
    files: Vec<PathBuf>,
    labels: Option<Labels>,
    notes: Vec<String>,
    input: Input,
    preprocessor: Preprocessor,
}

impl Images {
    pub(super) fn new(
        folder: &Path,
        inputs: &[Input],
        model: &Path,
        preprocessor: Option<&Path>,
    ) -> Result<Self, Error> {
        let [input] = inputs else {
            let help = "give arrays with --calibration FILE.npz";
            return Err(Error::data(folder, format!("is a folder, and the model takes {} inputs", inputs.len()), help));
        };
        let files = images_in(folder).map_err(Error::io("read", folder))?;
        if files.is_empty() {
            let help = "give a folder with .png, .jpg, .webp or .bmp files, or with test_data_set_*/input_*.pb";
            return Err(Error::data(folder, "holds no images and no test data", help));
        }
        let missing = || {
            let reason = "holds images, and there is no preprocessor_config.json beside the model";
            Error::data(folder, reason, "name one with --preprocessor PATH")
        };
        let preprocessor = Preprocessor::read(preprocessor.ok_or_else(missing)?)?;
        let mut notes = Vec::new();
        let labels = classes(folder, &files, &Config::beside(model), &mut notes);
        Ok(Self { folder: folder.to_path_buf(), files, labels, notes, input: input.clone(), preprocessor })
    }

    /// The pixels of some images: [samples, 3, height, width].
    fn pixels(&self, rows: &[usize]) -> Result<Array4<f32>, Error> {
        let mut pixels: Option<Array4<f32>> = None;
        let files = rows.iter().filter_map(|&row| self.files.get(row));
        for (i, file) in files.enumerate() {
            let image = self.preprocessor.shape(&decoded(file)?).map_err(|reason| Error::data(file, reason, SHAPES))?;
            let (width, height) = image.dimensions();
            let shape = (rows.len(), 3, height as usize, width as usize);
            if shape.0.saturating_mul(3 * shape.2 * shape.3) > MOST_PIXELS {
                let reason = format!("holds {} images of {width} x {height} pixels, which are too many", rows.len());
                return Err(Error::data(&self.folder, reason, "take fewer with --samples"));
            }
            let pixels = pixels.get_or_insert_with(|| Array4::zeros(shape));
            if pixels.dim() != shape {
                let help = "the preprocessor must make all images equally large: set size or crop_size";
                return Err(Error::data(file, format!("becomes {width} x {height} pixels, and others do not"), help));
            }
            for (x, y, &Rgb(color)) in image.enumerate_pixels() {
                for (channel, value) in self.preprocessor.numbers(color).into_iter().enumerate() {
                    if let Some(pixel) = pixels.get_mut([i, channel, y as usize, x as usize]) {
                        *pixel = value;
                    }
                }
            }
        }
        Ok(pixels.unwrap_or_default())
    }
}

impl Samples for Images {
    fn count(&self) -> usize {
        self.files.len()
    }

    fn read(self: Box<Self>, rows: &[usize]) -> Result<Part, Error> {
        let pixels = self.pixels(rows)?;
        let pixels = if takes_channels_last(&self.input) { pixels.permuted_axes([0, 2, 3, 1]) } else { pixels };
        let wrong = |reason: String| Error::data(&self.folder, reason, "give arrays with --calibration FILE.npz");
        let bytes: Vec<u8> = pixels.iter().flat_map(|p| p.to_le_bytes()).collect();
        let array = Tensor::from_raw(&self.input.name, ElementType::F32, pixels.shape(), bytes.into());
        let array = array.map_err(|e| wrong(e.to_string()))?;
        let element = self.input.element.unwrap_or(ElementType::F32);
        let array = converted(&array, element).ok_or_else(|| wrong(format!("gives no values of {element}")))?;
        let labels = self.labels.as_ref().map(|l| l.select(rows));
        let title = |&row: &usize| {
            self.files.get(row).map(|file| file.strip_prefix(&self.folder).unwrap_or(file).display().to_string())
        };
        let titles = rows.iter().filter_map(title).collect();
        Ok(Part { arrays: vec![array], labels, titles, notes: self.notes, ..Part::default() })
    }
}

/// The longest edge of an image, in a file or made of one.
const LONGEST: u32 = 16_384;

/// A size that a preprocessor asks for is no larger.
const LARGEST: u32 = 4_096;

/// An image takes no more bytes than this while it is decoded.
const MOST_DECODED: u64 = 256 << 20;

/// No more numbers than this are made of all images: 4 GiB.
const MOST_PIXELS: usize = 1 << 30;

const SHAPES: &str = "leave the image out, or give a preprocessor_config.json that belongs to the model";

/// The image in a file, within limits that its header cannot set aside.
fn decoded(file: &Path) -> Result<RgbImage, Error> {
    let opened = store::open(file).map_err(Error::io("read", file))?;
    let unreadable = |reason: String| Error::data(file, format!("is no readable image: {reason}"), FORMATS);
    fenced(file, || {
        let mut limits = image::Limits::default();
        (limits.max_image_width, limits.max_image_height) = (Some(LONGEST), Some(LONGEST));
        limits.max_alloc = Some(MOST_DECODED);
        let mut reader = ImageReader::new(BufReader::new(opened));
        reader.limits(limits);
        let reader = reader.with_guessed_format().map_err(Error::io("read", file))?;
        Ok(reader.decode().map_err(|e| unreadable(e.to_string()))?.to_rgb8())
    })
}

const FORMATS: &str = "give .png, .jpg, .webp or .bmp files";

/// All images below a folder, in the order of their paths.
fn images_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if path.is_dir() {
            files.extend(images_in(&path)?);
        } else if ["png", "jpg", "jpeg", "webp", "bmp"].contains(&extension.as_str()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The names of the folders that the images lie in, where all lie in one.
fn classes(folder: &Path, files: &[PathBuf], config: &Config, notes: &mut Vec<String>) -> Option<Labels> {
    let class = |file: &PathBuf| {
        let parent = file.strip_prefix(folder).ok()?.parent()?;
        parent.file_name().map(|n| n.to_string_lossy().into_owned())
    };
    let names: Vec<String> = files.iter().map(class).collect::<Option<_>>()?;
    Labels::from_words(&names, config, notes)
}

fn takes_channels_last(input: &Input) -> bool {
    let fixed = |axis: usize| input.axes.as_ref().and_then(|a| a.get(axis)) == Some(&Axis::Fixed(3));
    fixed(3) && !fixed(1)
}

impl Preprocessor {
    fn read(path: &Path) -> Result<Self, Error> {
        let content = store::read(path).map_err(Error::io("read", path))?;
        let help = "give the preprocessor_config.json that belongs to the model";
        let wrong = |reason: String| Error::data(path, reason, help);
        let this: Self = serde_json::from_slice(&content).map_err(|e| wrong(format!("cannot be understood: {e}")))?;
        if this.image_mean.len() != 3 || this.image_std.len() != 3 {
            return Err(wrong("needs three numbers in image_mean and image_std".into()));
        }
        let sizes = this.size.iter().chain(&this.crop_size).flat_map(|size| size.edges());
        if let Some(odd) = sizes.into_iter().find(|edge| !(1..=LARGEST).contains(edge)) {
            return Err(wrong(format!("asks for {odd} pixels, and 1 to {LARGEST} are possible")));
        }
        let scales = this.image_std.iter().chain(&this.image_mean).chain([&this.rescale_factor]);
        if this.image_std.contains(&0.0) || scales.into_iter().any(|x| !x.is_finite()) {
            return Err(wrong("has an image_std of 0, or a number that is not finite".into()));
        }
        Ok(this)
    }

    /// The image, resized and cropped; the reason where it would become too large.
    fn shape(&self, image: &RgbImage) -> Result<RgbImage, String> {
        let mut image = image.clone();
        let crops = self.do_center_crop.unwrap_or(false);
        if let Some(size) = self.size.filter(|_| self.do_resize.unwrap_or(true)) {
            let (width, height) = size.of(image.dimensions(), crops);
            if width.max(height) > LONGEST {
                return Err(format!("would become {width} x {height} pixels"));
            }
            image = self.resized(&image, width, height)?;
        }
        match self.crop_size.or(self.size).filter(|_| crops) {
            Some(size) => Ok(center(&image, size.of(image.dimensions(), false))),
            None => Ok(image),
        }
    }

    /// The image at another size, as Pillow makes it: first as wide, then as high, rounded in between.
    fn resized(&self, image: &RgbImage, width: u32, height: u32) -> Result<RgbImage, String> {
        let wide = self.resized_at_once(image, width, image.height())?;
        self.resized_at_once(&wide, width, height)
    }

    fn resized_at_once(&self, image: &RgbImage, width: u32, height: u32) -> Result<RgbImage, String> {
        let failed = |error: String| format!("cannot be resized: {error}");
        let from = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3);
        let from = from.map_err(|e| failed(e.to_string()))?;
        let mut to = Image::new(width, height, PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(self.filter());
        Resizer::new().resize(&from, &mut to, &options).map_err(|e| failed(e.to_string()))?;
        RgbImage::from_raw(width, height, to.into_vec()).ok_or_else(|| failed("its size is another".into()))
    }

    /// The filter with the number that Pillow gives it.
    fn filter(&self) -> ResizeAlg {
        match self.resample {
            Some(0) => ResizeAlg::Nearest,
            Some(1) => ResizeAlg::Convolution(FilterType::Lanczos3),
            Some(3) => ResizeAlg::Convolution(FilterType::CatmullRom),
            Some(4) => ResizeAlg::Convolution(FilterType::Box),
            Some(5) => ResizeAlg::Convolution(FilterType::Hamming),
            _ => ResizeAlg::Convolution(FilterType::Bilinear),
        }
    }

    /// Red, green and blue as the model takes them.
    fn numbers(&self, color: [u8; 3]) -> [f32; 3] {
        let mut scales = self.image_mean.iter().zip(&self.image_std);
        color.map(|value| {
            let value = f32::from(value);
            let value = if self.do_rescale.unwrap_or(true) { value * self.rescale_factor } else { value };
            match scales.next().filter(|_| self.do_normalize.unwrap_or(true)) {
                Some((mean, std)) => (value - mean) / std,
                None => value,
            }
        })
    }
}

impl Size {
    /// All numbers of pixels that it names.
    fn edges(&self) -> Vec<u32> {
        match *self {
            Self::Box { height, width } => vec![height, width],
            Self::Shortest { shortest_edge } => vec![shortest_edge],
            Self::Number(edge) => vec![edge],
        }
    }

    /// Width and height of what an image of width and height becomes. One number is the shorter edge where the
    /// image is cropped afterwards, else both.
    fn of(self, (width, height): (u32, u32), crops_afterwards: bool) -> (u32, u32) {
        let shortest = |edge: u32| {
            let scaled = |n: u32| {
                let length = u64::from(n) * u64::from(edge) / u64::from(width.min(height).max(1));
                u32::try_from(length).unwrap_or(u32::MAX)
            };
            (scaled(width).max(1), scaled(height).max(1))
        };
        match self {
            Self::Box { height, width } => (width, height),
            Self::Shortest { shortest_edge } => shortest(shortest_edge),
            Self::Number(edge) if crops_afterwards => shortest(edge),
            Self::Number(edge) => (edge, edge),
        }
    }
}

/// The middle of an image, with black around it where it is smaller.
fn center(image: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    let (x, y) = (image.width().saturating_sub(width) / 2, image.height().saturating_sub(height) / 2);
    let part = crop_imm(image, x, y, width.min(image.width()), height.min(image.height())).to_image();
    if part.dimensions() == (width, height) {
        return part;
    }
    let mut padded = RgbImage::new(width, height);
    let (x, y) = ((width - part.width()) / 2, (height - part.height()) / 2);
    image::imageops::replace(&mut padded, &part, x.into(), y.into());
    padded
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn preprocessor(json: &str) -> Preprocessor {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn sizes_of_all_generations_are_understood() {
        let image = RgbImage::new(100, 50);
        let shape = |json: &str| preprocessor(json).shape(&image).unwrap().dimensions();
        assert_eq!(shape(r#"{"size": {"height": 20, "width": 30}}"#), (30, 20));
        assert_eq!(shape(r#"{"size": {"shortest_edge": 25}}"#), (50, 25));
        assert_eq!(shape(r#"{"size": 24}"#), (24, 24));
        let cropped = r#"{"size": 24, "do_center_crop": true, "crop_size": {"height": 16, "width": 20}}"#;
        assert_eq!(shape(cropped), (20, 16));
        assert_eq!(shape(r#"{"size": 24, "do_resize": false}"#), (100, 50));
        assert_eq!(shape(r#"{"do_center_crop": true, "crop_size": 60}"#), (60, 60));
    }

    #[test]
    fn colors_are_rescaled_and_normalised() {
        let numbers = preprocessor(r#"{"image_mean": [0.5, 0.0, 1.0], "image_std": [0.5, 1.0, 0.5]}"#);
        assert_eq!(numbers.numbers([255, 255, 255]), [1.0, 1.0, 0.0]);
        let raw = preprocessor(r#"{"do_rescale": false, "do_normalize": false}"#);
        assert_eq!(raw.numbers([7, 8, 9]), [7.0, 8.0, 9.0]);
    }

    #[test]
    fn pixels_are_those_of_pillow_number_by_number() {
        let color = |x: u32, y: u32| [0, 1, 2].map(|c| ((37 * x * x + 91 * y + 53 * c * x) % 256) as u8);
        let image = RgbImage::from_fn(8, 6, |x, y| Rgb(color(x, y)));
        // Image.fromarray(...).resize((3, 4), resample=...) of Pillow 13: red and blue, row by row.
        let expected: [(u8, [u8; 12], [u8; 12]); 5] = [
            (
                1,
                [80, 157, 96, 159, 92, 175, 76, 114, 92, 156, 71, 172],
                [128, 171, 135, 123, 103, 94, 136, 134, 98, 152, 130, 107],
            ),
            (
                2,
                [90, 136, 104, 144, 100, 158, 92, 112, 106, 147, 82, 161],
                [126, 160, 141, 124, 114, 98, 137, 125, 103, 143, 131, 112],
            ),
            (
                3,
                [84, 146, 99, 155, 91, 171, 82, 116, 97, 153, 72, 169],
                [123, 166, 141, 124, 108, 95, 137, 128, 100, 146, 130, 111],
            ),
            (
                4,
                [108, 125, 123, 158, 5, 173, 82, 142, 97, 175, 22, 190],
                [128, 176, 119, 94, 120, 127, 145, 129, 93, 111, 137, 144],
            ),
            (
                5,
                [74, 120, 90, 162, 68, 178, 79, 119, 94, 166, 69, 182],
                [115, 171, 155, 119, 117, 102, 131, 116, 111, 137, 134, 119],
            ),
        ];
        for (filter, red, blue) in expected {
            let resized = preprocessor(&format!(r#"{{"resample": {filter}}}"#)).resized(&image, 3, 4).unwrap();
            let of = |channel: usize| resized.pixels().map(|pixel| pixel.0[channel]).collect::<Vec<_>>();
            assert_eq!([of(0), of(2)], [red.to_vec(), blue.to_vec()], "filter {filter}");
        }
    }

    #[test]
    fn the_middle_is_cut_out() {
        let image = RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8, y as u8, 0]));
        let part = center(&image, (1, 1));
        assert_eq!(part.get_pixel(0, 0).0, [2, 1, 0]);
    }
}
