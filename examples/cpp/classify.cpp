// Classify photographs with an exported model: `classify student.onnx photo.jpg…`. One row a photograph.
#include <onnxruntime_cxx_api.h>

#include <libexif/exif-data.h>

#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Image {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<uint8_t> pixels;  // RGB, height × width × 3
};

// How a camera was held, 1 to 8; 1, upright, where a file does not say.
int exif_orientation(const std::string& path) {
  const std::unique_ptr<ExifData, decltype(&exif_data_unref)> data(exif_data_new_from_file(path.c_str()), exif_data_unref);
  if (!data) return 1;
  const ExifEntry* entry = exif_content_get_entry(data->ifd[EXIF_IFD_0], EXIF_TAG_ORIENTATION);
  if (!entry || entry->format != EXIF_FORMAT_SHORT || entry->size < 2) return 1;
  const int value = exif_get_short(entry->data, exif_data_get_byte_order(data.get()));
  return value >= 1 && value <= 8 ? value : 1;
}

// The pixel of the stored image that belongs at (row, column) of the upright one, for the eight orientations of EXIF.
std::pair<int64_t, int64_t> stored_position(int orientation, int64_t row, int64_t column, int64_t height, int64_t width) {
  switch (orientation) {
    case 2: return {row, width - 1 - column};               // mirrored
    case 3: return {height - 1 - row, width - 1 - column};  // upside down
    case 4: return {height - 1 - row, column};
    case 5: return {column, row};
    case 6: return {height - 1 - column, row};  // turned to the left
    case 7: return {height - 1 - column, width - 1 - row};
    case 8: return {column, width - 1 - row};  // turned to the right
    default: return {row, column};
  }
}

// Any JPEG, PNG, BMP or GIF as upright 8-bit RGB.
Image load_image(const std::string& path) {
  int width = 0, height = 0, channels = 0;
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> stored(
      stbi_load(path.c_str(), &width, &height, &channels, STBI_rgb), stbi_image_free);
  if (!stored) throw std::runtime_error(path + ": " + stbi_failure_reason());

  const int orientation = exif_orientation(path);
  const bool on_its_side = orientation >= 5;
  Image image{on_its_side ? width : height, on_its_side ? height : width, {}};
  image.pixels.resize(static_cast<size_t>(image.height * image.width * 3));
  uint8_t* to = image.pixels.data();
  for (int64_t row = 0; row < image.height; ++row) {
    for (int64_t column = 0; column < image.width; ++column, to += 3) {
      const auto [y, x] = stored_position(orientation, row, column, height, width);
      std::copy_n(stored.get() + (y * width + x) * 3, 3, to);
    }
  }
  return image;
}

void classify(Ort::Session& session, const std::string& path) {
  Image image = load_image(path);
  const std::array<int64_t, 4> shape{1, image.height, image.width, 3};
  const Ort::Value input = Ort::Value::CreateTensor<uint8_t>(
      Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault), image.pixels.data(), image.pixels.size(),
      shape.data(), shape.size());

  const std::array<const char*, 1> inputs{"image"};
  const std::array<const char*, 3> outputs{"topk_label", "topk_probability", "task_scores"};
  const auto results =
      session.Run(Ort::RunOptions{nullptr}, inputs.data(), &input, 1, outputs.data(), outputs.size());

  const std::string label = results[0].GetStringTensorElement(0);
  const float probability = results[1].GetTensorData<float>()[0];
  const float* scores = results[2].GetTensorData<float>();
  const size_t tasks = results[2].GetTensorTypeAndShapeInfo().GetElementCount();
  const auto [worst, best] = std::minmax_element(scores, scores + tasks);
  std::printf("%s\t%s\t%.4f", path.c_str(), label.c_str(), probability);
  if (*worst < *best) std::printf("\ttask %td", best - scores + 1);  // all alike: none was selected
  std::printf("\n");
}

}  // namespace

int main(int count, char** words) {
  if (count < 3) {
    std::fprintf(stderr, "usage: classify MODEL.onnx PHOTOGRAPH...\n");
    return 2;
  }
  try {
    const Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "classify");
    Ort::Session session(environment, words[1], Ort::SessionOptions{});
    for (int i = 2; i < count; ++i) classify(session, words[i]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
