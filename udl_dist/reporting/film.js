for (const film of document.querySelectorAll("[data-film]")) {
  const images = film.querySelectorAll("img"), slider = film.querySelector("input"), said = film.querySelector("output");
  slider.addEventListener("input", () => {
    images.forEach((image, number) => { image.hidden = number !== slider.valueAsNumber; });
    said.value = images[slider.valueAsNumber].dataset.said;
    slider.setAttribute("aria-valuetext", said.value);
  });
}
