// A photograph's pixels as the model takes them: uint8 RGB [1, height, width, 3].
import { Tensor } from "onnxruntime-node";
import sharp from "sharp";
import { naming } from "./errors.mjs";

export const pixelsOf = (path) =>
  naming(path, async () => {
    const image = sharp(path).rotate().removeAlpha().toColourspace("srgb"); // rotate(): as EXIF says
    const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
    return new Tensor("uint8", data, [1, info.height, info.width, info.channels]);
  });
