// The anomaly map as colours over the photo, on a scale tied to the threshold.

// Octaves above the threshold, and there red, green, blue, opacity: violet at the threshold's half, where it is
// still invisible, magenta at the threshold, orange at twice, yellow at four times. Lightness grows all the way.
const OCTAVES = [-1, 0, 1, 2];
const HEAT = [
  [88, 24, 160, 0],
  [214, 30, 140, 0.75],
  [255, 130, 50, 0.9],
  [255, 244, 150, 0.95],
];
const DETAIL = 768; // pixels on the long side of the overlay

/** [red, green, blue, opacity] for a score, given the threshold. */
export function colour(value, threshold) {
  const octave = Math.log2(Math.max(value, 1e-12) / threshold);
  if (octave <= OCTAVES[0]) return HEAT[0];
  if (octave >= OCTAVES.at(-1)) return HEAT.at(-1);
  const i = OCTAVES.findLastIndex((at) => at <= octave);
  const t = octave - OCTAVES[i];
  return HEAT[i].map((from, k) => from + t * (HEAT[i + 1][k] - from));
}

/**
 * Draw a map over a photo.
 * @param {HTMLCanvasElement} canvas is set to a size of its own, in the shape of the photo
 * @param {HTMLImageElement} map 8-bit grey of any size, stretched over the photo; 255 stands for `peak`
 * @param photo {width, height} of the photo
 */
export function drawHeat(canvas, map, photo, peak, threshold) {
  const scale = DETAIL / Math.max(photo.width, photo.height);
  const width = Math.max(1, Math.round(photo.width * scale));
  const height = Math.max(1, Math.round(photo.height * scale));
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(map, 0, 0, width, height);
  const image = context.getImageData(0, 0, width, height);
  const pixels = image.data;

  const levels = Uint8Array.from({ length: width * height }, (_, i) => pixels[4 * i]);
  const colours = Array.from({ length: 256 }, (_, level) => colour((level / 255) * peak, threshold));
  const limit = (255 * threshold) / peak;
  for (let i = 0; i < levels.length; i += 1) {
    const [red, green, blue, opacity] = colours[levels[i]];
    pixels[4 * i] = red;
    pixels[4 * i + 1] = green;
    pixels[4 * i + 2] = blue;
    pixels[4 * i + 3] = 255 * opacity;
  }
  if (peak > threshold) rim(pixels, levels, width, height, limit);
  context.putImageData(image, 0, 0);
}

// A white line inside the regions above the threshold, so that they stand out on any photo.
function rim(pixels, levels, width, height, limit) {
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const i = y * width + x;
      if (levels[i] <= limit) continue;
      const inside =
        (x < 2 || levels[i - 2] > limit) &&
        (x >= width - 2 || levels[i + 2] > limit) &&
        (y < 2 || levels[i - 2 * width] > limit) &&
        (y >= height - 2 || levels[i + 2 * width] > limit);
      if (!inside) pixels.fill(255, 4 * i, 4 * i + 4);
    }
  }
}
