"use strict";
// The networks of this page: a ResNet-18 of any width, evaluated in plain JavaScript.
//
// Layers are those of resnet18 in bdcourse/models.py. BatchNorm is folded into the
// convolution before it, so that a channel that is switched off gets a kernel and a shift of
// zero. Maps are Float32Arrays of (channels, height, width). No DOM in here: the page and the
// test in tests/repository/test_playground.py run the same file.

var Live = (() => {
  /** Base64 text to bytes. */
  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  /** Numbers in half precision (IEEE 754 binary16) to 32-bit floats. */
  function halves(raw) {
    const words = new Uint16Array(raw.buffer, raw.byteOffset, raw.length / 2);
    const out = new Float32Array(words.length);
    for (let i = 0; i < words.length; i++) {
      const w = words[i], sign = w >> 15 ? -1 : 1, exponent = (w >> 10) & 31, part = w & 1023;
      out[i] = sign * (exponent ? (1 + part / 1024) * 2 ** (exponent - 15) : part * 2 ** -24);
    }
    return out;
  }

  /** Convolution with zeros around the map, then a shift for each channel. */
  function convolve(x, layer) {
    const { weight, shift, rows, columns, size, stride } = layer;
    const pad = size >> 1, h = x.h / stride, w = x.w / stride, wide = x.w + 2 * pad;
    const inside = new Float32Array(columns * (x.h + 2 * pad) * wide);
    for (let c = 0; c < columns; c++)
      for (let i = 0; i < x.h; i++)
        inside.set(
          x.data.subarray((c * x.h + i) * x.w, (c * x.h + i + 1) * x.w),
          (c * (x.h + 2 * pad) + i + pad) * wide + pad,
        );
    const out = new Float32Array(rows * h * w);
    for (let k = 0; k < rows; k++) {
      if (layer.off.has(k)) continue; // exactly zero, whatever comes in
      const own = out.subarray(k * h * w, (k + 1) * h * w).fill(shift[k]);
      for (let c = 0; c < columns; c++)
        for (let a = 0; a < size; a++)
          for (let b = 0; b < size; b++) {
            const v = weight[((k * columns + c) * size + a) * size + b];
            for (let i = 0; i < h; i++) {
              let from = (c * (x.h + 2 * pad) + i * stride + a) * wide + b;
              for (let j = i * w, end = j + w; j < end; j++, from += stride)
                own[j] += v * inside[from];
            }
          }
    }
    return { data: out, h, w };
  }

  function rectify(x) {
    for (let i = 0; i < x.data.length; i++) if (x.data[i] < 0) x.data[i] = 0;
    return x;
  }

  class Network {
    /** spec: {tensors: [[name, shape, whether in half precision], ...], halves and floats:
     *  their numbers one after the other as base64, mean, std, eps}. */
    constructor(spec) {
      const numbers = { true: halves(bytes(spec.halves)), false: new Float32Array(bytes(spec.floats).buffer) };
      const at = { true: 0, false: 0 };
      this.tensors = {};
      for (const [name, shape, short] of spec.tensors) {
        const n = shape.reduce((a, b) => a * b, 1);
        this.tensors[name] = { shape, data: numbers[short].subarray(at[short], (at[short] += n)) };
      }
      this.spec = spec;
      this.layers = {}; // by the name of the BatchNorm, in the order in which they run
      const join = (conv, bn, stride) => (this.layers[bn] = this.folded(conv, bn, stride));
      this.stem = join("conv1", "bn1", 1);
      this.blocks = [];
      for (let stage = 1; stage <= 4; stage++)
        for (let i = 0; i < 2; i++) {
          const name = `layer${stage}.${i}`, stride = stage > 1 && i === 0 ? 2 : 1;
          const block = {
            first: join(`${name}.conv1`, `${name}.bn1`, stride),
            second: join(`${name}.conv2`, `${name}.bn2`, 1),
          };
          if (`${name}.shortcut.0.weight` in this.tensors)
            block.skip = join(`${name}.shortcut.0`, `${name}.shortcut.1`, stride);
          this.blocks.push(block);
        }
      this.classes = this.tensors["linear.bias"].data.length;
    }

    folded(conv, bn, stride) {
      const of = (name) => this.tensors[name].data;
      const [rows, columns, size] = this.tensors[`${conv}.weight`].shape;
      const weight = Float32Array.from(of(`${conv}.weight`)), shift = new Float32Array(rows);
      for (let k = 0, n = weight.length / rows; k < rows; k++) {
        const factor = of(`${bn}.weight`)[k] / Math.sqrt(of(`${bn}.running_var`)[k] + this.spec.eps);
        for (let i = k * n; i < (k + 1) * n; i++) weight[i] *= factor;
        shift[k] = of(`${bn}.bias`)[k] - of(`${bn}.running_mean`)[k] * factor;
      }
      return { weight, shift, rows, columns, size, stride, off: new Set() };
    }

    /** Pixels in 0..1, (3, side, side), to one number a class. */
    logits(pixels) {
      const { mean, std } = this.spec, side = Math.sqrt(pixels.length / mean.length);
      const data = new Float32Array(pixels.length);
      for (let i = 0; i < pixels.length; i++) {
        const c = Math.floor(i / (side * side));
        data[i] = (pixels[i] - mean[c]) / std[c];
      }
      let x = rectify(convolve({ data, h: side, w: side }, this.stem));
      for (const { first, second, skip } of this.blocks) {
        const out = convolve(rectify(convolve(x, first)), second);
        const from = skip ? convolve(x, skip) : x;
        for (let i = 0; i < out.data.length; i++) out.data[i] += from.data[i];
        x = rectify(out);
      }
      const places = x.h * x.w, channels = x.data.length / places;
      const w = this.tensors["linear.weight"].data, b = this.tensors["linear.bias"].data;
      const out = Float32Array.from(b);
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        for (let i = 0; i < places; i++) sum += x.data[c * places + i];
        for (let k = 0; k < out.length; k++) out[k] += (w[k * channels + c] * sum) / places;
      }
      return out;
    }

    /** Which channels are off: {BatchNorm: [positions]}. */
    switchOff(channels) {
      for (const [name, layer] of Object.entries(this.layers)) layer.off = new Set(channels[name]);
    }
  }

  function softmax(logits) {
    const top = Math.max(...logits), e = Array.from(logits, (z) => Math.exp(z - top));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  }

  const best = (logits) => logits.indexOf(Math.max(...logits));

  /** A copy of the pixels with a patch mixed in: x' = (1 - opacity) x + opacity patch. */
  function stamped(pixels, patch, row, column, opacity) {
    const out = Float32Array.from(pixels), side = Math.sqrt(pixels.length / 3);
    const size = patch.length;
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < size; i++)
        for (let j = 0; j < size; j++) {
          const at = (c * side + row + i) * side + column + j;
          out[at] += opacity * (patch[i][j] - out[at]);
        }
    return out;
  }

  /** Mean and standard deviation, of n numbers by n - 1. */
  function spread(s) {
    const mean = s.reduce((a, b) => a + b, 0) / s.length;
    return [mean, Math.sqrt(s.reduce((a, b) => a + (b - mean) ** 2, 0) / (s.length - 1))];
  }

  /** CLP: the channels whose score lies more than u deviations above its layer's mean. */
  function outliers(scores, u) {
    const found = {};
    for (const [name, s] of Object.entries(scores)) {
      const [mean, std] = spread(s);
      found[name] = s.flatMap((v, k) => (v > mean + u * std ? [k] : []));
    }
    return found;
  }

  return { Network, bytes, softmax, best, stamped, spread, outliers };
})();

if (typeof module !== "undefined") module.exports = Live;
